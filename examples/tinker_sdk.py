"""The Tinker SDK, as it comes, with loractl in place of Tinker: train on three rows, save, ask.

loractl model tiny ./tiny && loractl daemon start --base-model tiny=./tiny --detach
eval "$(loractl env)"            # TINKER_BASE_URL and TINKER_API_KEY, which the SDK reads
python examples/tinker_sdk.py
"""

import tinker

ROWS = [
    ("What is the sea?", "A wide salt road, matey."),
    ("What is a friend?", "Who shares the last biscuit, matey."),
    ("What is a map?", "Treasure, drawn small, matey."),
]
STEPS = 30


def datum(tokenizer, question, answer):
    """The answer and the end of its turn have weight, what stands before them has none."""
    prompt = render(tokenizer, question)
    said = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    tokens, weights = prompt + said, [0.0] * len(prompt) + [1.0] * len(said)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights[1:]},
    )


def render(tokenizer, question):
    chat = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


def main():
    (model,) = tinker.RestClient().get_server_capabilities().result().supported_models
    with tinker.ServiceClient() as service:
        training = service.create_lora_training_client(model.model_name, rank=16).result()
        tokenizer = training.get_tokenizer()
        data = [datum(tokenizer, *row) for row in ROWS]
        trained = sum(sum(each.loss_fn_inputs["weights"].tolist()) for each in data)
        for step in range(1, STEPS + 1):
            passed = training.forward_backward(data, "cross_entropy")
            stepped = training.optim_step(tinker.AdamParams(learning_rate=5e-3))
            print(f"step {step:2}  loss {passed.result().metrics['loss:sum'] / trained:.3f}", flush=True)
            stepped.result()
        print("saved as", training.save_state("matey").result().path)

        sampler = training.save_weights_and_get_sampling_client().result()
        question, _ = ROWS[0]
        prompt = tinker.ModelInput.from_ints(render(tokenizer, question))
        params = tinker.SamplingParams(max_tokens=30, temperature=0.0)
        said = sampler.sample(prompt, 1, params).result().sequences[0]
        print(question, tokenizer.decode(said.tokens, skip_special_tokens=True))


if __name__ == "__main__":
    main()
