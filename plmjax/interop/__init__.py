"""Hugging Face folders, in and out, and the model card that goes with them."""

from plmjax.interop.card import CardFacts, model_card
from plmjax.interop.huggingface import Imported, export_folder, read_folder

__all__ = ["CardFacts", "Imported", "export_folder", "model_card", "read_folder"]
