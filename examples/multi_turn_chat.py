"""A chat of several turns: roles in both forms, and a later turn that depends on an earlier one.

Teaches: `user`, `assistant`, `with s.user():`, `messages()`. Each turn's prompt begins with all turns before it, whose
keys and values are in the cache already.
"""

import dslc


@dslc.function
def multi_turn_chat(s, name, second="What is my name?"):
    s += dslc.user(f"My name is {name}.")
    s += dslc.assistant(dslc.gen("greeting", max_tokens=24, temperature=0))
    with s.user():
        s += second
    with s.assistant():
        s += dslc.gen("answer", max_tokens=24, temperature=0)


if __name__ == "__main__":
    state = multi_turn_chat.run(name="Emma")
    for message in state.messages():
        print(f"{message['role']:10}{message['content']}")
