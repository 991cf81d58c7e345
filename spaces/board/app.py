"""The Space: a board, and what an importance map is."""

from __future__ import annotations

import gradio as gr
from views import board_names, inspect_map, show_board, show_named


def make_app() -> gr.Blocks:
    """Two tabs; nothing is loaded before somebody asks."""
    names = board_names()
    with gr.Blocks(title="ALoRA board") as app:
        gr.Markdown(
            "# Forgetting against learning\nWhat methods keep and learn at equal effort, and what an importance map is."
        )
        with gr.Tab("Board"):
            chosen = gr.Dropdown(names, value=names[0] if names else None, label="Board", visible=bool(names))
            file = gr.File(label="Or a board.json of your own", file_types=[".json"], type="filepath")
            page = gr.HTML(show_named(names[0] if names else None))
            chosen.change(show_named, chosen, page, api_name="named")
            file.change(show_board, file, page, api_name="board")
        with gr.Tab("Importance map"):
            repo = gr.Textbox(label="Map", placeholder="organisation/name, or organisation/name@revision")
            said = gr.Textbox(label="What it is", lines=16)
            repo.submit(inspect_map, repo, said, api_name="inspect")
            gr.Button("Inspect").click(inspect_map, repo, said, api_name=False)
    return app


if __name__ == "__main__":
    make_app().launch()
