resource "aws_budgets_budget" "alarm" {
  count             = var.alarm_email == null ? 0 : 1
  name              = var.name
  budget_type       = "COST"
  limit_amount      = format("%.1f", var.budget_usd)
  limit_unit        = "USD"
  time_unit         = "MONTHLY"
  time_period_start = "2025-01-01_00:00"
  notification {
    comparison_operator        = "GREATER_THAN"
    threshold                  = 80
    threshold_type             = "PERCENTAGE"
    notification_type          = "FORECASTED"
    subscriber_email_addresses = [var.alarm_email]
  }
}
