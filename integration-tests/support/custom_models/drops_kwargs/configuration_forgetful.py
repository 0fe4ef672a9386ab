"""Settings of a model that claims to keep to the contract for attention."""

from .configuration_lawful import LawfulConfig


class ForgetfulConfig(LawfulConfig):
    model_type = "forgetful"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
