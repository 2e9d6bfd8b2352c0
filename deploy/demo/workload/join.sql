-- Somebody new: one row.
\set n random(1000, 9999)
INSERT INTO customers (name, city)
VALUES ('Customer ' || :n, (ARRAY['Berlin', 'Lagos', 'Lima', 'Osaka', 'Porto'])[1 + :n % 5]);
