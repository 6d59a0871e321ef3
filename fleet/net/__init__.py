"""How boxes talk: framing, typed messages, the libp2p host with its peer gate, dialling, links and discovery.

Only this room imports libp2p, and only from modules that a borrower needs at run time; importing the package itself
costs nothing but what libp2p_imports.py prepares. What is said over a link (presence, jobs) belongs to the rooms above.
"""

from fleet.net.libp2p_imports import leave_out_unused

leave_out_unused()
