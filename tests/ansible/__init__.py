"""The playbooks against machines: containers that run sshd and an engine of their own, with the shipped images.
`machine` is one of them, `control` the machine that Ansible runs on. `make test-ansible` runs the tests.
"""
