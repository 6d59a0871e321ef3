"""Models as blobs: manifests, the store on disk, the choice of blocks, and moving them between boxes.

What a blob means (a model, its name, where it should be) belongs to the rooms above; how messages get to a peer, to
fleet.net.
"""
