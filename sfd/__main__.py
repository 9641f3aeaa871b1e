"""`python -m sfd`, for `accelerate launch -m sfd`."""

from sfd.cli import main

main()
