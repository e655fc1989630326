"""Text as it is generated, with the log-prob of each token.

Teaches: `run(stream=True)`, `text_async_iter(return_meta_data=True)`, reading the state afterwards.
"""

import asyncio

import dslc


@dslc.function
def story(s, beginning):
    s += beginning
    s += dslc.gen("story", max_tokens=32)


async def main(backend: dslc.Engine | None = None) -> float:
    state = story.run(beginning="The little fox", stream=True, return_logprob=True, temperature=0, backend=backend)
    total = 0.0
    async for text, info in state.text_async_iter("story", return_meta_data=True):
        total += sum(logprob for logprob, _, _ in info["output_token_logprobs"])
        print(text, end="", flush=True)
    print(f"\n{total:.2f} over {state.get_meta_info('story')['completion_tokens']} tokens")
    return total


if __name__ == "__main__":
    asyncio.run(main())
