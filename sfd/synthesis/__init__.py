"""Safe synthetic datasets: drawn by a student, screened image by image, counted and bounded.

`asked` says what is asked for, `screening` who looks, `folders` draws and commits, `credentials`
signs, `bounds` says what may have leaked, `dataset` joins them; `webdataset` packs, `usefulness`
measures.
"""

from sfd.synthesis.dataset import synthesize

__all__ = ["synthesize"]
