# %% [markdown]
# # 2. Choosing
#
# `select` lets the model choose one of several texts. It does not generate: the log-probs of all choices are computed
# in one pass, and the best one is appended.

# %%
import dslc


@dslc.function
def sentiment(s, review):
    s += f"Review: {review}\nSentiment:"
    s += dslc.select("verdict", [" positive", " negative"])


state = sentiment.run(review="The food was terrible and cold.")
print(state["verdict"])

# %% [markdown]
# The meta info has the score of each choice. How a score is made of the log-probs of a choice's tokens is decided by
# `choices_method`: the mean by default (`token_length_normalized`), `greedy_token_selection`,
# `unconditional_likelihood_normalized`, or one of your own.

# %%
info = state.get_meta_info("verdict")
for choice, score in zip(info["choices"], info["normalized_prompt_logprobs"], strict=True):
    print(f"{choice:10} {'likely' if score > -0.1 else 'unlikely'}")

# %% [markdown]
# What was chosen is a string like any other: the program can branch on it. (The compiler follows both sides.)


# %%
@dslc.function
def answer_review(s, review):
    s += f"Review: {review}\nSentiment:"
    s += dslc.select("verdict", [" positive", " negative"])
    if s["verdict"] == " negative":
        s += "\nWe are sorry to hear that."
    else:
        s += "\nThank you!"


print(answer_review.run(review="I love this lamp.").text())
