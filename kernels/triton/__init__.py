"""Triton forms of the operations, file by file as their torch forms stand one folder up. Importing one imports triton.

They are held to their twins under Triton's interpreter (TRITON_INTERPRET=1) and compiled for GPUs by the tests.
"""
