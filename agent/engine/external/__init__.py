"""Inference servers beside this box, each an engine whose models count as held here.

What they are asked and how their answers are read is pure (`survey`, `listing`, `dialect`, `answer`, `sse`, `failure`,
`derived`); `http` moves the bytes; `engine` and `held` live like `agent.engine.holding` does. Nothing here starts,
stops or configures a server.
"""
