"""Speed and memory of longeval itself, beside a plain transformers loop in the same run (`make bench`).

Every verdict is a ratio of two things measured in turn by one process on one machine; seconds don't travel between
machines, ratios nearly do. Nothing here is part of the test suite's verdict: no test asserts a time.

    run.py       the command line
    subject.py   what is measured: the model twice (ours, untouched) and one long text
    timing.py    two things in turn, medians, ratios
    measure.py   tokens/s, curve/longest, sliding windows
    sharing.py   choices and questions with and without a shared key/value cache
    peak.py      peak memory and start-up, each in a process of its own
    scale.py     several workers: overhead of a unit of work, schedules and their simulation; studies/ is work for it
    show.py      tables, and what each number means
"""
