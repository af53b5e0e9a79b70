"""A pass says that it gets on with every layer, so that a long one is not taken for one that hangs."""

from loractl.tests.trainer_actor.compute_lab import Lab, batch, begin, run, spec


def test_each_layer_of_a_pass_says_that_it_gets_on_forward_and_backward(lab: Lab):
    engine = lab.engine()
    begin(engine, 0, spec())
    steps: list[None] = []
    engine.tell_progress(lambda: steps.append(None))

    run(engine, batch(0, [4, 3]))

    assert (
        len(steps) == 2 * 4 * lab.model("llama").config.num_hidden_layers
    )  # four linears of a layer, both ways
