"""The models that MMM4Rec is compared with, behind the same interface."""
