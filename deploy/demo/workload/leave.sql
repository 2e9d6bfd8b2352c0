-- The oldest customer leaves and takes all orders along: several deletes in one transaction.
DELETE FROM customers
WHERE id = (SELECT id FROM customers ORDER BY id LIMIT 1) AND (SELECT count(*) FROM customers) > 10;
