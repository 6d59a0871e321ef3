"""How news travel: presence (the load of each box, never stored), and the ops of the fleet document.

Ops are broadcast at once and evened out by anti-entropy; what an op means, and whether it is accepted, belongs to
`fleet.document`. Nothing here dials: it is given the links there are, and says which would be good to have.
"""
