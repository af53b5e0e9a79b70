#!/bin/sh
# Fill a virtual environment: install.sh VENV PYTHON
#
#   CUDA (nvidia-smi answers)   the official vllm and the CUDA torch it is built for
#   Linux without CUDA          torch's CPU build, vllm's CPU build, everything from cpu.lock
#   elsewhere                   no vllm: the embedded torch engine samples
set -eu
venv=$1
python=$2
here=$(dirname "$0")
root=$here/..

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "loractl needs Python 3.11 or newer; $python is $("$python" -V). Set PYTHON=/path/to/python3.11" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"

pip_install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

install_cpu_torch() {
    # A pip that is configured with a source of CPU builds finds the first. uv knows PyTorch's own CPU index.
    pip_install "torch==2.13.0+cpu" 2>/dev/null && return
    pip_install uv
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --torch-backend=cpu "torch==2.13.0"
}

install_cookbook() {
    # Without its requirements, one of which is not published (see pyproject.toml).
    pip_install --no-deps "$(grep '^tinker_cookbook==' "$here/cpu.lock")"
}

install_oldest_sdk() {
    # The tests run it, too: the lower end of the range in tinker_bridge/sdk_versions.py.
    oldest=$(sed -n 's/^OLDEST = (\([0-9]*\), \([0-9]*\), \([0-9]*\)).*/\1.\2.\3/p' "$root/tinker_bridge/sdk_versions.py")
    rm -rf "$venv/tinker-oldest"
    pip_install --no-deps --target "$venv/tinker-oldest" "tinker==$oldest" ||
        echo "setup: tinker $oldest was not found, so the test of it will be skipped" >&2
}

if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    echo "setup: CUDA found, installing the CUDA builds"
    pip_install -r "$here/cuda.lock"
    pip_install --no-deps -e "$root"
    install_cookbook
elif [ "$(uname -s)" = Linux ]; then
    echo "setup: no CUDA, installing the CPU builds"
    install_cpu_torch
    pip_install --no-deps -r "$here/cpu.lock"
    pip_install --no-deps -e "$root"
    # vllm's CPU build loads libnuma and runs lscpu; without them "auto" falls back to the torch engine.
    "$venv/bin/python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
        echo "setup: libnuma is missing, so vllm will not start: install the package libnuma1" >&2
    command -v lscpu >/dev/null 2>&1 ||
        echo "setup: lscpu is missing, so vllm will not start: install the package util-linux" >&2
else
    echo "setup: no vllm for this system, the embedded torch engine will sample"
    pip_install -c "$here/cpu.lock" -e "$root[train,dev]"
    install_cookbook
fi
install_oldest_sdk
