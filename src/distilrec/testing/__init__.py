"""Contract tests for the parts that others can add: stores, students and teachers."""
