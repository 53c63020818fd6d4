"""`morphfed doctor --federation`: is this machine ready for a federation over a network?"""
