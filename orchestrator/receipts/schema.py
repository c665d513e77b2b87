"""The JSON Schema of a receipt's statement, written from its classes.

python -m orchestrator.receipts.schema >docs/reference/receipt.schema.json
"""

from __future__ import annotations

import json
import sys

from orchestrator.receipts.statement import Statement


def schema() -> str:
    """The text of docs/reference/receipt.schema.json."""
    found = Statement.model_json_schema(by_alias=True, mode="serialization")
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **found}, indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema())
