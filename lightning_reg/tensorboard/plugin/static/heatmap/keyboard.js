// Moves of the cursor of a heatmap by the arrow keys.

const FAR = 10;

/** Return the cell after `key`, within the grid; null for other keys. */
export function moved(key, { row, column }, rows, columns) {
  const moves = {
    ArrowUp: [row - 1, column],
    ArrowDown: [row + 1, column],
    ArrowLeft: [row, column - 1],
    ArrowRight: [row, column + 1],
    PageUp: [row - FAR, column],
    PageDown: [row + FAR, column],
    Home: [row, 0],
    End: [row, columns - 1],
  };
  if (!(key in moves)) return null;
  const [newRow, newColumn] = moves[key];
  return { row: within(newRow, rows), column: within(newColumn, columns) };
}

function within(index, count) {
  return Math.min(Math.max(index, 0), count - 1);
}
