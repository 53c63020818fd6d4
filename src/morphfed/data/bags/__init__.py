"""Bags of instance features on disk: the files that pathologists have, read where they lie.

``files`` reads one bag, ``sets`` the CSV sets of the MIL literature, ``tables`` the slide tables of CLAM and HistoFL,
``drafting`` makes manifest rows of them, ``store`` hands bags to training.
"""
