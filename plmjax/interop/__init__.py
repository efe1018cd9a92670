"""Export and import of Hugging Face folders, with their model card."""

from plmjax.interop.card import CardFacts, model_card
from plmjax.interop.huggingface import Imported, export_folder, read_folder

__all__ = ["CardFacts", "Imported", "export_folder", "model_card", "read_folder"]
