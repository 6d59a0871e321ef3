"""Looking at a running agent: health problems as data, and the facts they are judged from.

Rules are pure; nothing here changes what the agent does.
"""
