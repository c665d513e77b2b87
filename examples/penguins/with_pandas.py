"""Mass by species and sex, with pandas. Usage: with_pandas.py PENGUINS.CSV. Writes mass.csv where it is run."""

import sys

import pandas as pd

penguins = pd.read_csv(sys.argv[1]).dropna(subset=["body_mass_g", "sex"])
mass = penguins.groupby(["species", "sex"])["body_mass_g"].agg(["count", "mean", "std"]).round(1)
mass.to_csv("mass.csv")
print(f"{len(penguins)} penguins, pandas {pd.__version__}")
print(mass)
