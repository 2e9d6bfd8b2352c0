-- The demo's database: a small shop.

CREATE TABLE customers (
  id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name      text        NOT NULL,
  city      text        NOT NULL,
  orders    integer     NOT NULL DEFAULT 0,
  joined_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE orders (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  customer_id bigint        NOT NULL REFERENCES customers ON DELETE CASCADE,
  status      text          NOT NULL DEFAULT 'new',
  amount      numeric(12,2) NOT NULL,
  details     jsonb         NOT NULL,
  placed_at   timestamptz   NOT NULL DEFAULT now()
);
CREATE INDEX ON orders (customer_id);

INSERT INTO customers (name, city)
SELECT 'Customer ' || g, (ARRAY['Berlin', 'Lagos', 'Lima', 'Osaka', 'Porto'])[1 + g % 5] FROM generate_series(1, 20) g;
