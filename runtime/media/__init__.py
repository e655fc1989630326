"""Pictures in prompts: what a model's processor makes of them, their ids and positions, and their encoded features."""
