"""Train a quality head on a distribution that can be enumerated, and compare it with what it should have learnt.

PRISM's head shall learn p(x_i = y_i | y with i masked): the probability that a token is right, had the model not seen it. On
three positions of three letters that is a sum over a table, for every draft that training can reach, and so is how often each
is reached. With one drafted position per row the head comes to the exact posterior. With two it comes to something else:
drafted tokens that it takes for data vouch for each other. That bias is a sum over the table too.

Prints: one drafted position: the exact posterior; two: a biased one, as predicted
"""

import torch

import prism_plugin as prism
from prism_plugin.evaluation.tasks.enumerable import DraftStates, JointTable, draft_states, proposal_of, three_letter_table
from prism_plugin.testing import tiny_backbone

NUM_STEPS, LEARNING_RATE = 500, 5e-3


def build(table: JointTable) -> prism.PrismModel:
    """Make a small BERT with random weights, all of them trained, and its head."""
    torch.manual_seed(0)
    backbone = tiny_backbone("bert", vocab_size=table.num_letters + 1, hidden_size=32, num_hidden_layers=1)
    backbone.set_attn_implementation("eager")  # the quickest for three tokens
    config = prism.PrismConfig(mask_token_id=table.num_letters, train_backbone=True, base_rate=0.5)
    return prism.attach_quality_head(backbone, config)


def train(
    model: prism.PrismModel,
    table: JointTable,
    num_drafted: int,
    *,
    num_steps: int = NUM_STEPS,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
) -> None:
    """Train the language model and the head together. Every step sees the whole table, with fresh noise."""
    batch = prism.PrismCollator(pad_token_id=0)(table.prepared_rows())
    objective = prism.get_objective("prism", num_drafted=num_drafted)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps, pct_start=0.1)
    for step in range(num_steps):
        output = objective.step(model, batch, epoch=step, seed=seed, unwrapped=model)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        schedule.step()


def states_of(model: prism.PrismModel, table: JointTable, num_drafted: int) -> DraftStates:
    """Every draft that training reaches with what this model proposes now, and how often."""
    return draft_states(table, proposal_of(model, table), num_drafted)


def main() -> None:
    """Train two heads and print what they have learnt."""
    table = three_letter_table()

    model = build(table)
    train(model, table, num_drafted=1)
    one = states_of(model, table, num_drafted=1)
    learnt = one.quality(model)
    print("one drafted position per row; the states that are reached most often:\n  draft  judged   reached  exact  learnt")
    for index in one.weight.argsort(descending=True)[:12].tolist():
        draft = "".join("abc_"[token] for token in one.draft_ids[index].tolist())
        letter, place = draft[one.position[index]], one.position[index] + 1
        print(f"  {draft}    {letter} at {place}   {one.weight[index]:.3f}    {one.exact[index]:.3f}  {learnt[index]:.3f}")
    error = one.mean_error(learnt, one.exact)
    constant = one.mean_error(one.best_constant(), one.exact)
    print(f"mean absolute error over all {len(one)} states: {error:.3f}; of the best constant: {constant:.3f}")

    model = build(table)
    train(model, table, num_drafted=2)
    two = states_of(model, table, num_drafted=2)
    learnt = two.quality(model)
    bias, to_predicted = two.mean_error(learnt, two.exact), two.mean_error(learnt, two.predicted)
    print(f"two drafted positions per row: {bias:.3f} from the exact posterior, {to_predicted:.3f} from the prediction")
    if error <= 0.02 and constant >= 0.15 and bias >= 0.05 and to_predicted <= 0.03:
        print("one drafted position: the exact posterior; two: a biased one, as predicted")


if __name__ == "__main__":
    main()
