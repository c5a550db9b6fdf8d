"""The comparison study: plan -> train -> measure -> tables and figures -> page."""
