"""What should be on this box, what is, and what to do next: placements of the fleet document turned into fetched,
served and deleted models. Decisions are pure (`selector`, `desired`, `homes`, `plan`, `schedule`, `explain`);
`execute` carries them out. How blocks travel is `fleet.blobs`, how a model runs `agent.engine`.
"""
