"""What all tests share: how they are collected. What they need lies in their own folders."""

import gc

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported for the tests stays: nobody looks for garbage in it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
