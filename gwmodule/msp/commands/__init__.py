"""The commands of `gwmodule-msp`, a module for each subject.

Each module has `add(command)`, which declares its commands, and a coroutine or function for each.
"""
