"""A simulated PC with Intel AMT, and the lab that puts some of them behind a gateway."""
