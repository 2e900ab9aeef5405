"""``genimg-fast list``."""

from typing import Any, Literal

from genimg_fast.cli.arguments import say
from genimg_fast.cli.commands import add_function
from genimg_fast.models import list_models
from genimg_fast.models.registry import describe_model
from genimg_fast.training import list_trainables

DATA = {
    "digits": "1,797 handwritten digits at 8x8, of scikit-learn",
    "photos": "crops of two photographs, of scikit-learn",
    "mnist": "60,000 handwritten digits at 28x28, through torchvision (--download)",
    "fashion-mnist": "60,000 pictures of clothes at 28x28, through torchvision (--download)",
    "cifar10": "50,000 photographs at 32x32 in colour, through torchvision (--download)",
    "moving-digits": "sequences of digits that move about, made as they are needed",
    "FOLDER": "images, a class for each subfolder; of pairs A|B; of IDX files; of frames, or clips",
    "FILE": "a file of IDX images; a video or an animated GIF, for models of frames",
}


def add(commands: Any) -> None:
    """Add the command."""

    def list_(what: Literal["models", "data", "commands"] | None = None) -> int:
        """List models, data and commands, a line each.

        Args:
            what: Which of them; default: all.

        Example:
            genimg-fast list
            genimg-fast list models
        """
        trained = list_trainables()
        models = {
            name: describe_model(name) + ("" if name in trained else " Not one of train's.")
            for name in list_models()
        }
        tools = {action.dest: action.help or "" for action in commands._choices_actions}
        lists = {"models": models, "data": DATA, "commands": tools}
        for title, entries in lists.items():
            if what in (None, title):
                if what is None:
                    say(f"{title}:")
                width = max(map(len, entries))
                for name, text in sorted(entries.items()) if title == "models" else entries.items():
                    say(f"  {name:<{width}}  {text.replace('``', '')}")
        return 0

    add_function(commands, list_)
