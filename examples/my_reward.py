"""A reward for PPO is a function of prompts and responses. This one prefers short answers.

    cd examples
    accelerate launch ../train.py --loss ppo --reward my_reward:brevity

`--reward module:function` imports the module from the working directory, or where it is installed.
"""

ENOUGH = 4  # words: fewer score no higher, so that the best answer is not an empty one


def brevity(prompts: list[str], responses: list[str]) -> list[float]:
    """A score for each response, higher is better.

    Args:
        prompts: what the model was asked, as the data has it: strings, or lists of messages
            {"role": ..., "content": ...}.
        responses: what it sampled, in the same order. The token that ended a response is not in its
            text; a response that reached --max_new_tokens just stops.
        Further parameters get columns of the prompts' rows: docs/ppo.md.

    Returns:
        One finite number for each response, in order: a list, a NumPy array or a tensor of shape
        (n,). Anything else ends the run with a line that names the row.
    """
    # It is called on up to 64 rows at a time: a score must not depend on the other rows of a call.
    return [-max(len(response.split()) - ENOUGH, 0) / ENOUGH for response in responses]
