"""Each algorithm once more, straight through: the oracle that the assembled agent must match to the bit,
and the tutorial. Read `td3.py` first; `sac.py` and `td7.py` repeat what they share with it on purpose."""
