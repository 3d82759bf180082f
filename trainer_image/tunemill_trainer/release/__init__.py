"""Turns an adapter into a published model: its folder, its card, the push and the proof."""
