"""A node pack for ComfyUI: one node, which takes a model and a bundle and gives the model under guard."""

from comfy_api.latest import ComfyExtension, io

from lvd.guard import AuditLog, Guard

from .guarded import guard_model


class LVDGuard(io.ComfyNode):
    """The node: it verifies the bundle when it is executed, and the model carries the guard from then on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LVDGuard",
            display_name="LVD Guard",
            category="model/safety",
            inputs=[
                io.Model.Input("model"),
                io.String.Input("bundle", tooltip="The directory that evaluate.py exported"),
                io.String.Input("digest", default="", tooltip="As evaluate.py printed it"),
                io.String.Input("audit", default="", tooltip="A log of the decisions; empty: none"),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, bundle: str, digest: str, audit: str) -> io.NodeOutput:
        node = cls.hidden.unique_id
        log = AuditLog(audit) if audit else None
        guard = Guard.from_pretrained(bundle, digest=digest or None, audit=log)
        return io.NodeOutput(guard_model(model, guard, lambda text: show(text, node)))


def show(text: str, node: str) -> None:
    """Text below the node, in the browser."""
    from server import PromptServer  # there is none where the engine is used as a library

    PromptServer.instance.send_progress_text(text, node)


class LVDExtension(ComfyExtension):
    """What ComfyUI loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LVDGuard]


async def comfy_entrypoint() -> LVDExtension:
    return LVDExtension()
