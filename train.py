"""`attnlab train` from a checkout:  python train.py model=neural_d2 data=cifar100."""

from attnlab.commands import start

if __name__ == "__main__":
    start("train")
