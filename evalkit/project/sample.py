"""Rows to try everything with before one's own data is at hand: customer questions and the JSON they are routed by."""

import json
from typing import Any

ITEMS = (
    "shoes", "a winter coat", "headphones", "a desk lamp", "running shorts", "a coffee grinder", "a backpack", "socks",
    "a yoga mat", "a phone case", "a rain jacket", "a water bottle", "a keyboard", "gloves", "a toaster",
)  # fmt: skip
QUESTIONS = {
    "delivery": (
        "Where is my order of {item}?",
        "When will {item} arrive?",
        "I have waited a week for {item}, what happened?",
        "Can you tell me the delivery date for {item}?",
    ),
    "return": (
        "I want to send {item} back.",
        "How do I return {item}?",
        "{item} does not fit, can I give it back?",
        "Please take back {item}, I changed my mind.",
    ),
    "price": (
        "How much is {item}?",
        "What does {item} cost with shipping?",
        "Is there a discount on {item}?",
        "Tell me the price of {item}.",
    ),
    "stock": (
        "Do you have {item}?",
        "Is {item} in stock?",
        "Will {item} be available again?",
        "Can I still buy {item}?",
    ),
}


def sample_rows() -> list[dict[str, Any]]:
    """240 rows: every question about every item; expected is {"intent", "item"}."""
    return [
        {
            "messages": [
                {"role": "user", "content": question.format(item=item)[:1].upper() + question.format(item=item)[1:]},
                {"role": "assistant", "content": json.dumps({"intent": intent, "item": item})},
            ],
            "tags": {"intent": intent},
        }
        for item in ITEMS
        for intent, questions in QUESTIONS.items()
        for question in questions
    ]
