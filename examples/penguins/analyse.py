"""How much heavier are male penguins, and does a flipper tell the mass?

Usage: analyse.py PENGUINS.CSV. Writes dimorphism.csv, regression.csv and mass.svg where it is run. Needs the standard
library only; the bootstrap is seeded, two runs on the same data give the same bytes.
"""

import csv
import random
import statistics
import sys
from collections import defaultdict
from pathlib import Path

SPECIES = ("Adelie", "Chinstrap", "Gentoo")
COLOURS = {"Adelie": "#e8803a", "Chinstrap": "#8a4fb0", "Gentoo": "#1b7f79"}
RESAMPLES = 1000


def read(path):
    """The penguins with no missing value among those that we use: dicts with floats for measurements."""
    kept, dropped = [], 0
    with open(path, newline="") as lines:
        for row in csv.DictReader(lines):
            try:
                mass, flipper = float(row["body_mass_g"]), float(row["flipper_length_mm"])
            except ValueError:
                dropped += 1
                continue
            kept.append({"species": row["species"], "sex": row["sex"], "mass": mass, "flipper": flipper})
    return kept, dropped


def interval(males, females, rng):
    """A 95 % bootstrap interval (percentiles) of the difference of the means."""
    differences = sorted(
        statistics.fmean(rng.choices(males, k=len(males))) - statistics.fmean(rng.choices(females, k=len(females)))
        for _ in range(RESAMPLES)
    )
    return differences[int(0.025 * RESAMPLES)], differences[int(0.975 * RESAMPLES) - 1]


def dimorphism(penguins):
    """One row a species: counts, means, the difference and its interval, in grams."""
    rng = random.Random(2014)
    masses = defaultdict(list)
    for bird in penguins:
        masses[bird["species"], bird["sex"]].append(bird["mass"])
    for species in SPECIES:
        males, females = masses[species, "male"], masses[species, "female"]
        low, high = interval(males, females, rng)
        difference = statistics.fmean(males) - statistics.fmean(females)
        yield {
            "species": species,
            "males": len(males),
            "females": len(females),
            "male_mass_g": round(statistics.fmean(males), 1),
            "female_mass_g": round(statistics.fmean(females), 1),
            "difference_g": round(difference, 1),
            "ci95_low_g": round(low, 1),
            "ci95_high_g": round(high, 1),
        }


def regression(penguins):
    """Body mass on flipper length, by species and over all: slope, intercept, r squared."""
    for group in (*SPECIES, "all"):
        chosen = [bird for bird in penguins if group in (bird["species"], "all")]
        flippers, masses = [bird["flipper"] for bird in chosen], [bird["mass"] for bird in chosen]
        line = statistics.linear_regression(flippers, masses)
        yield {
            "group": group,
            "n": len(chosen),
            "grams_per_mm": round(line.slope, 2),
            "intercept_g": round(line.intercept, 1),
            "r_squared": round(statistics.correlation(flippers, masses) ** 2, 3),
        }


def write(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def plot(path, penguins):
    """Mass against flipper length, one dot a bird."""
    width, height, edge = 640, 420, 50
    flippers, masses = [bird["flipper"] for bird in penguins], [bird["mass"] for bird in penguins]

    def x(value):
        return edge + (value - min(flippers)) / (max(flippers) - min(flippers)) * (width - 2 * edge)

    def y(value):
        return height - edge - (value - min(masses)) / (max(masses) - min(masses)) * (height - 2 * edge)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{width / 2}" y="{height - 12}" text-anchor="middle">flipper length, '
        f"{min(flippers):.0f} to {max(flippers):.0f} mm</text>",
        f'<text x="16" y="{height / 2}" text-anchor="middle" transform="rotate(-90 16 {height / 2})">body mass, '
        f"{min(masses):.0f} to {max(masses):.0f} g</text>",
    ]
    for index, species in enumerate(SPECIES):
        parts.append(f'<text x="{edge + 10}" y="{edge + 18 * index}" fill="{COLOURS[species]}">{species}</text>')
    for bird in penguins:
        parts.append(
            f'<circle cx="{x(bird["flipper"]):.1f}" cy="{y(bird["mass"]):.1f}" r="3.2" fill="{COLOURS[bird["species"]]}" '
            'fill-opacity="0.7"/>'
        )
    Path(path).write_text("\n".join([*parts, "</svg>", ""]))


def main():
    penguins, dropped = read(sys.argv[1])
    print(f"{len(penguins)} penguins, {dropped} left out for a missing measurement")
    rows = list(dimorphism(penguins))
    write("dimorphism.csv", rows)
    for row in rows:
        print(
            f"{row['species']:<10} males are {row['difference_g']:.0f} g heavier "
            f"(95 % interval {row['ci95_low_g']:.0f} to {row['ci95_high_g']:.0f} g; n = {row['males']} + {row['females']})"
        )
    lines = list(regression(penguins))
    write("regression.csv", lines)
    overall = lines[-1]
    print(f"one mm of flipper goes with {overall['grams_per_mm']:.1f} g of penguin (r² = {overall['r_squared']})")
    plot("mass.svg", penguins)


if __name__ == "__main__":
    main()
