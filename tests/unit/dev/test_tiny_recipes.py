"""The small recipes have the same properties as the large ones that they represent in tests."""

import yaml
from tunemill_dev.testbed import SAMPLES
from tunemill_dev.tiny.recipes import FUNCTION_GEMMA_TEMPLATE, search_rows, thinking_rows
from tunemill_trainer.chat.rendering import ChatTemplate
from tunemill_trainer.data.formats import hermes, simple
from tunemill_trainer.data.rows import Role
from tunemill_trainer.data.tools import given_tools

GUIDE = (
    "<bos><start_of_turn>developer\n"
    "You are a model that can do function calling with the following functions"
    "<start_function_declaration>declaration:search_knowledge_base{description:"
    "<escape>Search internal company documents, policies and project data.<escape>,parameters:{properties:{query:"
    "{description:<escape>query string<escape>,type:<escape>STRING<escape>}},required:[<escape>query<escape>],"
    "type:<escape>OBJECT<escape>}}<end_function_declaration>"
    "<start_function_declaration>declaration:search_google{description:"
    "<escape>Search public information.<escape>,parameters:{properties:{query:"
    "{description:<escape>query string<escape>,type:<escape>STRING<escape>}},required:[<escape>query<escape>],"
    "type:<escape>OBJECT<escape>}}<end_function_declaration><end_of_turn>\n"
    "<start_of_turn>user\n"
    "What is the reimbursement limit for travel meals?<end_of_turn>\n"
    "<start_of_turn>model\n"
    "<start_function_call>call:search_knowledge_base{query:<escape>travel meal reimbursement limit policy<escape>}"
    "<end_function_call><start_function_response>"
)
"""What Google's guide prints of its first row."""


def test_the_functiongemma_sample_is_rendered_as_in_its_guide():
    """A row of the guide with the sample's tools and the small base model's template gives the guide's prompt."""
    _, config = yaml.safe_load_all((SAMPLES / "functiongemma.yaml").read_text())
    tools = given_tools(config["data"]["tools.json"], "tools.json")
    messages, _ = simple.read(
        {
            "user_content": "What is the reimbursement limit for travel meals?",
            "tool_name": "search_knowledge_base",
            "tool_arguments": '{"query": "travel meal reimbursement limit policy"}',
        }
    )
    template = ChatTemplate(FUNCTION_GEMMA_TEMPLATE, {"bos_token": "<bos>"}, marked=False)
    text = template.conversation(messages, tools)
    assert text.strip() == GUIDE


def test_every_row_has_a_different_request():
    """Held-out requests must not occur in training rows."""
    requests = [row["user_content"] for row in search_rows(240, seed=1)]
    assert len(set(requests)) == 240


def test_rows_with_reasoning_are_read():
    """Tools in prose, calls as Python literals and a misspelt tag become reasoning, a call, a response and a reply."""
    messages, tools = hermes.read(thinking_rows(1, seed=2)[0])
    assert [message.role for message in messages] == [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL, Role.ASSISTANT]
    acts, replies = messages[2], messages[4]
    assert acts.reasoning
    assert acts.calls[0].name in {tool.name for tool in tools}
    assert replies.reasoning
    assert not replies.calls
    assert "<" not in messages[0].content + messages[3].content
