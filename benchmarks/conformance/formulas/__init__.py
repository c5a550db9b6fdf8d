"""The papers' formulas once more, at 80 digits: where the vectors' expected values come from."""
