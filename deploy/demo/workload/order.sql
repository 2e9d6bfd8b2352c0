-- A purchase: two orders and their customer's counter in one transaction.
\set quantity random(1, 9)
BEGIN;
SELECT id AS customer FROM customers ORDER BY random() LIMIT 1 FOR UPDATE \gset
INSERT INTO orders (customer_id, amount, details)
SELECT :customer, 9.95 * :quantity * g, jsonb_build_object('sku', 'SKU-' || g, 'quantity', :quantity)
FROM generate_series(1, 2) g;
UPDATE customers SET orders = orders + 2 WHERE id = :customer;
COMMIT;
