"""Hostile and honest inputs by class, each with what may come of it; `running` tries them.

*clean*: the work succeeded and its result is right, or it was refused with one line that names
the file or key, and nothing on disk is changed. *traceback*: an exception came out. *silent*: exit
0 and a wrong result. *other*: all else, such as a hang.
"""
