-- The oldest open order moves on: one update.
UPDATE orders SET status = CASE status WHEN 'new' THEN 'paid' ELSE 'shipped' END
WHERE id = (SELECT id FROM orders WHERE status <> 'shipped' ORDER BY id LIMIT 1);
