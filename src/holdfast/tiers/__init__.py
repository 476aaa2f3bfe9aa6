"""One file per kind of place, behind one contract (tiers/contract.py), plus wrappers."""
