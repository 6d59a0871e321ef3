"""Running models: one child process per model, its protocol, its handle in the agent, and the pool of them.

Only `worker` and the modules it alone imports touch llama.cpp, and they run in the child; everything else here works
on a box without it.
"""
