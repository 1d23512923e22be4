"""nnU-Net's topology rule under the models' roof; the numbers themselves live in `medjax/topology.py`, which planning shares."""

from medjax.topology import Sides, Topology, features_per_stage, topology

__all__ = ["Sides", "Topology", "features_per_stage", "topology"]
